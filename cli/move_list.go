package cli

import (
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
)

func (p *podctl) moveListCommand() *command {
	return &command{
		name: "ls", aliases: []string{"list"}, args: "[POD]", max: 1, completes: []completer{completePods, completeNothing},
		usage:       "list moves",
		description: "Lists moves, of all pods or one, the newest first.",
		examples:    []string{"podctl move ls", "podctl move ls alice -o wide"},
		flags:       []cli.Flag{outputFlag()},
		action: func(c *cli.Context) error {
			format, err := p.outputFormat(c)
			if err != nil {
				return err
			}
			client, err := p.client()
			if err != nil {
				return err
			}
			response, err := client.moves.ListMoves(c.Context, connect.NewRequest(&poddv1.ListMovesRequest{Pod: c.Args().First()}))
			if err != nil {
				return fmt.Errorf("listing moves: %w", err)
			}
			var moves []moveView
			for _, message := range response.Msg.GetMoves() {
				moves = append(moves, viewMove(message))
			}
			slices.SortStableFunc(moves, func(a, b moveView) int { return b.StartedAt.Compare(a.StartedAt) })
			return moveListing.print(p.stdout, format, moves)
		},
	}
}

func (p *podctl) moveShowCommand() *command {
	return &command{
		name: "show", args: "ID", min: 1, max: 1, completes: []completer{completeMoves, completeNothing},
		usage: "show a move and its receipt", notFound: "podctl move ls lists the moves",
		description: "Shows the receipt of a move that is done, how far one has got that is under way,\nor why one failed.",
		examples:    []string{"podctl move show 4f1c09", "podctl move show 4f1c09 -o yaml"},
		flags:       []cli.Flag{outputFlag()},
		action: func(c *cli.Context) error {
			format, err := p.outputFormat(c)
			if err != nil {
				return err
			}
			client, err := p.client()
			if err != nil {
				return err
			}
			id := c.Args().First()
			response, err := client.moves.GetMove(c.Context, connect.NewRequest(&poddv1.GetMoveRequest{Id: id}))
			if err != nil {
				return fmt.Errorf("showing move %s: %w", id, err)
			}
			return p.printMove(format, viewMove(response.Msg.GetMove()))
		},
	}
}
